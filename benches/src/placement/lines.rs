//! A picture of lines, for the report.

use anyhow::anyhow;
use plotters::prelude::*;

/// A line and what it is called.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

const COLOURS: [RGBColor; 8] = [
    RGBColor(0x1f, 0x4e, 0x9c),
    RGBColor(0xc8, 0x3e, 0x2b),
    RGBColor(0x2b, 0x8a, 0x4b),
    RGBColor(0xb0, 0x7a, 0x12),
    RGBColor(0x6d, 0x3f, 0x9c),
    RGBColor(0x22, 0x8b, 0x99),
    RGBColor(0x70, 0x70, 0x70),
    RGBColor(0xa8, 0x3a, 0x7a),
];

/// Draws lines over shared axes; the text of the SVG.
pub(crate) fn draw(title: &str, across: &str, up: &str, lines: &[Line]) -> anyhow::Result<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let (low, high) = points()
            .map(pick)
            .fold((f64::MAX, f64::MIN), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let margin = ((high - low) * 0.04).max(1e-9);
        (low - margin)..(high + margin)
    };
    if points().next().is_none() {
        return Err(anyhow!("a picture without points: {title}"));
    }
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (860, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(range(|point| point.0), range(|point| point.1))?;
        chart
            .configure_mesh()
            .x_desc(across)
            .y_desc(up)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                .label(line.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// Draws lines over shared logarithmic axes; the text of the SVG. Every coordinate is above zero.
pub(crate) fn draw_log(title: &str, across: &str, up: &str, lines: &[Line]) -> anyhow::Result<String> {
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let points = lines.iter().flat_map(|line| &line.points).map(pick);
        points.fold((f64::MAX, f64::MIN), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (x, y) = (range(|point| point.0), range(|point| point.1));
    if x.0 > x.1 {
        return Err(anyhow!("a picture without points: {title}"));
    }
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (860, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((x.0..x.1 * 1.1).log_scale(), (y.0 / 1.5..y.1 * 1.5).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(across)
            .y_desc(up)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                .label(line.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .position(SeriesLabelPosition::UpperLeft)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}
