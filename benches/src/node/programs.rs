//! A program beside the first process of a replica: `berth exec` through scheduler and node link, beside `ctr tasks exec` on the
//! same containers.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use berth_api::time::monotonic;

use crate::arguments::Arguments;
use crate::figures::{Figures, percentile};
use crate::instance::Instance;
use crate::report::millis;

const RUNS: usize = 30;
const PROGRAM: [&str; 3] = ["/bin/berth-test-workload", "exit", "0"];

pub(crate) async fn measure(
    instance: &Instance,
    arguments: &Arguments,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let replica = instance.a_replica("many").await?;
    let (mut raws, mut ours) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address")
            .arg(&instance.containerd_socket)
            .args(["--namespace", &instance.machine()?.containerd_namespace])
            .args(["tasks", "exec", "--exec-id", &format!("bench-{run}"), &replica]);
        raws.push(timed(ctr.args(PROGRAM))?);
        let mut berth = Command::new(&arguments.berth);
        berth.args(["exec", &replica, "--"]);
        ours.push(timed(berth.args(PROGRAM))?);
    }
    let (raw, own) = (percentile(&raws, 50), percentile(&ours, 50));
    figures.add(
        "ctr_exec_p50_ms",
        "a program, ctr tasks exec, p50",
        "ms",
        raw,
        None,
    );
    figures.add("exec_p50_ms", "a program, berth exec, p50", "ms", own, None);
    figures.add("exec_ratio", "a program, ratio of the p50s", "x", own / raw, None);
    Ok(())
}

fn timed(command: &mut Command) -> anyhow::Result<f64> {
    let begun = monotonic();
    let output = command.stdin(Stdio::null()).output();
    let program = Path::new(command.get_program()).display().to_string();
    let output = output.with_context(|| format!("run {program}"))?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program}: {words}");
    Ok(millis(begun.elapsed()))
}
