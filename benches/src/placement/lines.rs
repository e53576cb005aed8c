//! A picture of lines, for the report.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
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
    let (x, y) = ranges(title, lines)?;
    let widened = |(low, high): (f64, f64)| {
        let margin = ((high - low) * 0.04).max(1e-9);
        (low - margin)..(high + margin)
    };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = frame(&area, title).build_cartesian_2d(widened(x), widened(y))?;
        fill(&mut chart, (across, up), lines, SeriesLabelPosition::MiddleRight)?;
        area.present()?;
    }
    Ok(svg)
}

/// Draws lines over shared logarithmic axes; the text of the SVG. Every coordinate is above zero.
pub(crate) fn draw_log(title: &str, across: &str, up: &str, lines: &[Line]) -> anyhow::Result<String> {
    let (x, y) = ranges(title, lines)?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = frame(&area, title)
            .build_cartesian_2d((x.0..x.1 * 1.1).log_scale(), (y.0 / 1.5..y.1 * 1.5).log_scale())?;
        fill(&mut chart, (across, up), lines, SeriesLabelPosition::UpperLeft)?;
        area.present()?;
    }
    Ok(svg)
}

const SIZE: (u32, u32) = (860, 480);

/// Least and most of both coordinates.
fn ranges(title: &str, lines: &[Line]) -> anyhow::Result<((f64, f64), (f64, f64))> {
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
    Ok((x, y))
}

fn frame<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, Shift>,
    title: &str,
) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70);
    builder
}

/// Draws the axes, the lines and their names.
fn fill<'a, 'b: 'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    (across, up): (&str, &str),
    lines: &[Line],
    names: SeriesLabelPosition,
) -> anyhow::Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
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
        .position(names)
        .draw()?;
    Ok(())
}
