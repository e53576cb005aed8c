//! A program beside the first process of a running container that somebody speaks with: its input and output are FIFOs of ours, or
//! a terminal that the shim makes.
//!
//! ```text
//! attach ─▶ FIFOs ─▶ exec ─▶ start ─▶ Attached{input, output, exit}
//!                                        └── dropped ─▶ killed with all that it started, removed, FIFOs removed
//! ```
//! The shim holds the far ends of the FIFOs, so the program outlives containerd. It does not outlive the daemon that was spoken
//! through: what a dead daemon left is ended by [`Runtime::end_forgotten`] of the next.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, ExecProcessRequest, ListPidsRequest, ResizePtyRequest,
};
use oci_spec::runtime::BoxBuilder;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tracing::warn;

use super::call::{Tolerate as _, within};
use super::exec::PROCESS_TYPE;
use super::lifecycle::json_any;
use super::{Runtime, RuntimeError};

/// Begin of the names of all such programs.
const PREFIX: &str = "attach-";
/// One call that waits for a program's end; then another is made.
const WAIT_CALL: Duration = Duration::from_secs(600);
const WAIT_AGAIN: Duration = Duration::from_secs(1);
const TERM: &str = "TERM=";
const TERM_DEFAULT: &str = "TERM=xterm";

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub command: Vec<String>,
    /// Columns and rows of its terminal; none: three pipes.
    pub terminal: Option<(u32, u32)>,
    /// Whether it has input; else it reads end of file.
    pub input: bool,
}

/// A program that runs. Dropping it ends the program.
#[derive(Debug)]
pub struct Attached {
    pub input: Option<pipe::Sender>,
    /// Ends when the program and all that it started have closed it.
    pub output: pipe::Receiver,
    /// None with a terminal.
    pub error_output: Option<pipe::Receiver>,
    /// The exit code, once.
    pub exit: oneshot::Receiver<Result<u32, RuntimeError>>,
    pub control: Control,
    _keep: oneshot::Sender<()>,
}

/// What may be done to a program that runs, beside reading and writing.
#[derive(Debug, Clone)]
pub struct Control {
    runtime: Runtime,
    id: String,
    exec_id: String,
}

impl Control {
    /// Makes it read end of file, once its [`Attached::input`] is dropped.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn end_input(&self) -> Result<(), RuntimeError> {
        let deadline = self.runtime.inner.config.task_timeout;
        let request = CloseIoRequest {
            container_id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            stdin: true,
        };
        let request = self.runtime.headers().request(request, Some(deadline));
        let closed = within("close input", &self.id, deadline, async {
            self.runtime.client().tasks().close_io(request).await
        });
        closed.await.or_gone().map(|_| ())
    }

    /// Tells its terminal a new size in characters.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<(), RuntimeError> {
        let deadline = self.runtime.inner.config.task_timeout;
        let request = ResizePtyRequest {
            container_id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            width: columns,
            height: rows,
        };
        let request = self.runtime.headers().request(request, Some(deadline));
        let resized = within("resize terminal", &self.id, deadline, async {
            self.runtime.client().tasks().resize_pty(request).await
        });
        resized.await.or_gone().map(|_| ())
    }
}

/// The FIFOs of one program; removed when dropped. Who has opened them keeps them.
#[derive(Debug)]
struct Fifos {
    dir: PathBuf,
    input: Option<PathBuf>,
    output: PathBuf,
    error_output: Option<PathBuf>,
}

/// This side of the FIFOs.
struct Ends {
    input: Option<pipe::Sender>,
    output: pipe::Receiver,
    error_output: Option<pipe::Receiver>,
}

impl Fifos {
    fn make(dir: PathBuf, program: &Program) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let fifos = Self {
            input: program.input.then(|| dir.join("stdin")),
            output: dir.join("stdout"),
            error_output: program.terminal.is_none().then(|| dir.join("stderr")),
            dir,
        };
        let all = [
            fifos.input.as_ref(),
            Some(&fifos.output),
            fifos.error_output.as_ref(),
        ];
        for path in all.into_iter().flatten() {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        Ok(fifos)
    }

    /// The shim's side need not be open: for input this side stands in for a reader until there is one, and nothing is read before the
    /// program is started.
    fn open(&self) -> io::Result<Ends> {
        let receiver = |path: &PathBuf| pipe::OpenOptions::new().open_receiver(path);
        let sender = |path: &PathBuf| pipe::OpenOptions::new().read_write(true).open_sender(path);
        Ok(Ends {
            input: self.input.as_ref().map(sender).transpose()?,
            output: receiver(&self.output)?,
            error_output: self.error_output.as_ref().map(receiver).transpose()?,
        })
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            warn!(dir = %self.dir.display(), error = %error, "the FIFOs of a program could not be removed");
        }
    }
}

/// Keeps a program from being taken for a forgotten one.
struct Remembered<'a> {
    runtime: &'a Runtime,
    exec_id: &'a str,
}

impl<'a> Remembered<'a> {
    fn new(runtime: &'a Runtime, exec_id: &'a str) -> Self {
        runtime.attached().insert(exec_id.to_owned());
        Self { runtime, exec_id }
    }
}

impl Drop for Remembered<'_> {
    fn drop(&mut self) {
        self.runtime.attached().remove(self.exec_id);
    }
}

/// Details of a process beside the first one, as the shim tells them: `containerd.runc.v1.ProcessDetails`.
#[derive(Clone, PartialEq, prost::Message)]
struct ProcessDetails {
    #[prost(string, tag = "1")]
    exec_id: String,
}

impl Runtime {
    /// Starts `program` in a running container, with the user, environment and directory of its first process; its FIFOs lie in a
    /// directory of their own below `dir`.
    ///
    /// # Errors
    /// When containerd or the shim does not answer, the container does not run, or the program cannot be started
    /// ([`RuntimeError::is_bad_program`]).
    pub async fn attach(&self, id: &str, program: Program, dir: &Path) -> Result<Attached, RuntimeError> {
        let failed = |message: String| RuntimeError::Failed {
            operation: "attach",
            object: id.to_owned(),
            message,
        };
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|error| failed(error.to_string()))?;
        let exec_id = format!("{PREFIX}{:016x}", u64::from_be_bytes(random));
        let fifos = Fifos::make(dir.join(&exec_id), &program).map_err(|error| failed(error.to_string()))?;
        let ends = fifos.open().map_err(|error| failed(error.to_string()))?;
        let (ready, attached) = oneshot::channel();
        let accompanied = Accompanied {
            runtime: self.unguarded(),
            id: id.to_owned(),
            exec_id,
            fifos,
        };
        // A task of its own: who stops waiting leaves nothing half made.
        let run = accompanied.run(program, ends, ready);
        self.inner
            .tracker
            .spawn(self.inner.cancel.clone().run_until_cancelled_owned(run));
        attached
            .await
            .unwrap_or_else(|_| Err(failed("the daemon ends".into())))
    }

    /// Ends the programs of a container that nobody speaks with any more: those of a daemon that died.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn end_forgotten(&self, id: &str) -> Result<(), RuntimeError> {
        let deadline = self.inner.config.call_timeout;
        let request = ListPidsRequest {
            container_id: id.to_owned(),
        };
        let request = self.headers().request(request, Some(deadline));
        let answer = within("list processes", id, deadline, async {
            self.client().tasks().list_pids(request).await
        });
        let Some(answer) = answer.await.or_gone()? else {
            return Ok(());
        };
        let details = answer
            .into_inner()
            .processes
            .into_iter()
            .filter_map(|process| process.info);
        let names = details.filter_map(|info| {
            let details: ProcessDetails = prost::Message::decode(info.value.as_slice()).ok()?;
            details.exec_id.starts_with(PREFIX).then_some(details.exec_id)
        });
        for exec_id in names {
            if !self.attached().contains(&exec_id) {
                warn!(id, exec_id, "ending a program that nobody speaks with any more");
                self.end_process(id, &exec_id).await?;
            }
        }
        Ok(())
    }

    fn attached(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.inner.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that owns one program.
struct Accompanied {
    runtime: Runtime,
    id: String,
    exec_id: String,
    fifos: Fifos,
}

impl Accompanied {
    async fn run(self, program: Program, ends: Ends, ready: oneshot::Sender<Result<Attached, RuntimeError>>) {
        let remembered = Remembered::new(&self.runtime, &self.exec_id);
        match self.start(&program).await {
            Ok(()) => self.accompany(ends, ready).await,
            Err(error) => {
                // Whoever asked may have gone.
                ready.send(Err(error)).ok();
            }
        }
        if let Err(error) = self.runtime.end_process(&self.id, &self.exec_id).await {
            warn!(id = self.id, error = %error, "a program beside the first process could not be removed");
        }
        drop(remembered);
    }

    async fn start(&self, program: &Program) -> Result<(), RuntimeError> {
        let (runtime, id) = (&self.runtime, self.id.as_str());
        let mut process = runtime.first_process(id).await?;
        process
            .set_args(Some(program.command.clone()))
            .set_terminal(Some(program.terminal.is_some()));
        if let Some((columns, rows)) = program.terminal {
            // From its begin: a size that is told afterwards may come after its first look.
            let size = BoxBuilder::default().width(columns).height(rows).build().ok();
            process.set_console_size(size);
            let mut env = process.env().clone().unwrap_or_default();
            if !env.iter().any(|entry| entry.starts_with(TERM)) {
                env.push(TERM_DEFAULT.to_owned());
            }
            process.set_env(Some(env));
        }
        let path = |path: Option<&PathBuf>| path.map_or_else(String::new, |path| path.display().to_string());
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            stdin: path(self.fifos.input.as_ref()),
            stdout: path(Some(&self.fifos.output)),
            stderr: path(self.fifos.error_output.as_ref()),
            terminal: program.terminal.is_some(),
            spec: Some(json_any(PROCESS_TYPE, &process)),
            exec_id: self.exec_id.clone(),
        };
        let deadline = runtime.inner.config.task_timeout;
        let request = runtime.headers().request(request, Some(deadline));
        within("exec", id, deadline, async {
            runtime.client().tasks().exec(request).await
        })
        .await?;
        runtime.start_process(id, &self.exec_id).await
    }

    fn control(&self) -> Control {
        Control {
            runtime: self.runtime.clone(),
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
        }
    }

    /// Stays until nobody holds the [`Attached`] any more: the shim throws output away that is not read when the program is removed.
    async fn accompany(&self, ends: Ends, ready: oneshot::Sender<Result<Attached, RuntimeError>>) {
        let (keep, mut dropped) = oneshot::channel();
        let (ended, exit) = oneshot::channel();
        let attached = Attached {
            input: ends.input,
            output: ends.output,
            error_output: ends.error_output,
            exit,
            control: self.control(),
            _keep: keep,
        };
        if ready.send(Ok(attached)).is_err() {
            return;
        }
        // Cancel-safe: a call that only waits.
        tokio::select! {
            code = self.wait() => {
                ended.send(code).ok();
            }
            _ = &mut dropped => return,
        }
        dropped.await.ok();
    }

    async fn wait(&self) -> Result<u32, RuntimeError> {
        loop {
            match self
                .runtime
                .wait_process(&self.id, &self.exec_id, WAIT_CALL)
                .await
            {
                // The program runs on under its shim while containerd is away.
                Err(RuntimeError::Timeout { .. } | RuntimeError::Unreachable { .. }) => {
                    tokio::time::sleep(WAIT_AGAIN).await;
                }
                ended => return ended,
            }
        }
    }
}
