//! Running a command to its end, with a limit on how long that may take.

use std::fmt;
use std::io::Read;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How a command ended, and what it printed.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What was run, for messages.
    pub what: String,
    /// The exit code; 128 plus the signal's number when one ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Itself, if the command ended with 0.
    ///
    /// # Errors
    /// Says what was printed.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.code == 0, "{self}");
        Ok(self)
    }

    /// Itself, if the command ended with something else than 0 and said `text` somewhere.
    ///
    /// # Errors
    /// Says what was printed.
    pub fn refused(self, text: &str) -> Result<Self> {
        ensure!(self.code != 0, "this should have failed with `{text}`: {self}");
        ensure!(
            self.stderr.contains(text) || self.stdout.contains(text),
            "this should say `{text}`: {self}"
        );
        Ok(self)
    }

    /// Standard output without blanks at its ends.
    #[must_use]
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// It isn't JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("this should print JSON: {self}"))
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended with {} after {:?}",
            self.what, self.code, self.took
        )?;
        write!(
            f,
            "\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// By how much limits are longer here than on an ordinary machine: `ORLOP_TEST_SLOWNESS`, which an emulated guest sets;
/// 1 to 20, otherwise 1.
fn slowness() -> u32 {
    let told = std::env::var("ORLOP_TEST_SLOWNESS").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(1).clamp(1, 20)
}

/// Waits for a child that was spawned with piped output; kills it when it takes longer than `limit`.
///
/// # Errors
/// The limit was passed, or the child can't be waited for.
pub fn finish(what: &str, mut child: Child, limit: Duration) -> Result<Finished> {
    let limit = limit * slowness();
    let begun = Instant::now();
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("failed to wait for `{what}`"))?
        {
            break status;
        }
        if begun.elapsed() > limit {
            // It may have ended in between; then there is nothing to kill.
            let _ = child.kill();
            child
                .wait()
                .with_context(|| format!("failed to wait for `{what}`"))?;
            bail!(
                "`{what}` had not ended after {limit:?}; it said: {} {}",
                stdout.so_far(),
                stderr.so_far()
            );
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    let code = std::os::unix::process::ExitStatusExt::signal(&status)
        .map_or(status.code().unwrap_or(255), |s| 128 + s);
    let took = begun.elapsed();
    Ok(Finished {
        what: what.to_owned(),
        code,
        stdout: stdout.so_far(),
        stderr: stderr.so_far(),
        took,
    })
}

/// Output that is read while the command runs. A grandchild that keeps the pipe doesn't hold up the reader.
struct Reader {
    text: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    done: std::sync::mpsc::Receiver<()>,
}

impl Reader {
    fn so_far(&self) -> String {
        let _ = self.done.recv_timeout(Duration::from_millis(500));
        String::from_utf8_lossy(&self.text.lock().expect("no holder panics")).into_owned()
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> Reader {
    let text = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (tell, done) = std::sync::mpsc::channel();
    if let Some(mut pipe) = pipe {
        let text = std::sync::Arc::clone(&text);
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                text.lock()
                    .expect("no holder panics")
                    .extend_from_slice(&buffer[..n]);
            }
            // Nobody may be waiting.
            let _ = tell.send(());
        });
    }
    Reader { text, done }
}

/// Sets up a command so that [`finish`] can read what it prints.
pub fn piped(command: &mut std::process::Command) -> &mut std::process::Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
}

/// Asks again and again until the answer is yes.
///
/// # Errors
/// It was still no (or an error, which is then told) after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let limit = limit * slowness();
    let begun = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        let answer = ask();
        if matches!(answer, Ok(true)) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > limit {
            answer.with_context(|| format!("waited {limit:?} for {what}"))?;
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn output_and_status_are_kept() {
        let child = piped(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
            .spawn()
            .unwrap();
        let finished = finish("sh", child, Duration::from_secs(10)).unwrap();
        assert_eq!(
            (finished.code, finished.text(), finished.stderr.as_str()),
            (3, "out", "err\n")
        );
        assert!(finished.clone().ok().is_err());
        finished.refused("err").unwrap();
    }

    #[test]
    fn a_slow_command_is_ended() {
        let child = piped(Command::new("sleep").arg("100")).spawn().unwrap();
        let error = finish("sleep", child, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("had not ended"), "{error}");
    }
}
