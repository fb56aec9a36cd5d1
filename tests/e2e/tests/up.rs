//! `hack/up` and `hack/down` as a user runs them, but for the builds: what CI has built is used.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests_harness::{Finished, Footprint, run, tools, wait_until};

/// A node that is up may have to wait for a compiler that has cargo's lock.
const PATIENCE: Duration = Duration::from_secs(300);

/// A place for a node, beside others.
struct Place {
    folder: PathBuf,
    bin: PathBuf,
}

impl Place {
    fn new(name: &str) -> Result<Self> {
        let bin = tools::ours("orlop-cri")?;
        let bin = bin
            .parent()
            .context("the executables are in a folder")?
            .to_owned();
        Ok(Self {
            folder: std::env::temp_dir().join(format!("orlop-up-{}-{name}", std::process::id())),
            bin,
        })
    }

    fn run(&self, script: &str, args: &[&str]) -> Result<Finished> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../hack")
            .join(script);
        let mut command = Command::new(path);
        command
            .args(args)
            .env("ORLOP_UP", &self.folder)
            .env("ORLOP_BIN_DIR", &self.bin);
        run::finish(script, run::piped(&mut command).spawn()?, PATIENCE)
    }

    fn up(&self) -> Result<Finished> {
        self.run("up", &["--cri-only"])?.ok()
    }

    fn up_with_kubelet(&self) -> Result<Finished> {
        self.run("up", &["--node-only"])?.ok()
    }

    /// The pods that the kubelet runs: name, UID and start of each container.
    fn kubelets_pods(&self) -> Result<Vec<[String; 3]>> {
        let mut command = Command::new(self.folder.join("orlop"));
        let pods = run::finish(
            "orlop",
            run::piped(command.args(["pods", "-o", "json"])).spawn()?,
            PATIENCE,
        )?;
        let list: serde_json::Value = serde_json::from_str(&pods.ok()?.stdout)?;
        let pods = list["items"].as_array().context("there is no list of pods")?;
        let fact = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let mut facts = Vec::new();
        for pod in pods {
            let statuses = pod["status"]["containerStatuses"].as_array();
            for status in statuses.into_iter().flatten() {
                facts.push([
                    fact(&pod["metadata"]["name"]),
                    fact(&pod["metadata"]["uid"]),
                    fact(&status["state"]["running"]["startedAt"]),
                ]);
            }
        }
        Ok(facts)
    }

    fn down(&self) -> Result<Finished> {
        self.run("down", &[])?.ok()
    }

    /// A fact about the node.
    fn fact(&self, name: &str) -> Result<String> {
        let facts = fs::read_to_string(self.folder.join("node.env"))?;
        let mut lines = facts.lines();
        let fact = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        fact.map(str::to_owned)
            .with_context(|| format!("there is no {name} in {facts}"))
    }

    fn holder(&self) -> Result<u32> {
        Ok(self.fact("node_holder")?.parse()?)
    }

    fn footprint(&self) -> Result<Footprint> {
        let parent = self.folder.parent().context("the folder is in a folder")?;
        // The name without the counter, which is also that of the folder's processes.
        Ok(Footprint::of(
            self.holder()?,
            &self.fact("node_name")?,
            &[parent, &self.folder],
        ))
    }

    fn pods(&self) -> Result<String> {
        let mut command = Command::new(self.folder.join("crictl"));
        let pods = run::finish(
            "crictl",
            run::piped(command.args(["pods", "-q"])).spawn()?,
            PATIENCE,
        )?;
        Ok(pods.ok()?.text().to_owned())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Down already, unless the test has failed.
        let _ = self.down();
    }
}

/// What the page of a run says of the pod: it answers, logs and executes.
fn tells_of_the_pod(page: &Finished) -> Result<()> {
    for fact in [
        "/hostname  ->  demo",
        "/healthz   ->  ok",
        "listening on port 8080",
        "uid=0(root)",
        "all of it",
        "hack/down",
    ] {
        ensure!(page.stdout.contains(fact), "hack/up doesn't say `{fact}`: {page}");
    }
    Ok(())
}

/// What the page of a run with a kubelet says of its pods.
fn tells_of_the_kubelets_pods(page: &Finished) -> Result<()> {
    for fact in [
        "examples/node/web.yaml",
        "/hostname  ->  hello",
        "->  Hello from web-",
        "the web server listens on port 8080",
        "the clock runs",
        "uid=0(root)",
        "ahoy from 10.88.",
        "Ahoy from a ConfigMap",
        "node and daemons ready",
        "pods: from files to Ready",
        "all of it",
        "hack/down",
    ] {
        ensure!(page.stdout.contains(fact), "hack/up doesn't say `{fact}`: {page}");
    }
    let rows = page.stdout.lines().filter(|line| line.starts_with("default "));
    let running = rows
        .filter(|row| row.split_whitespace().nth(3) == Some("Running"))
        .count();
    ensure!(running == 2, "{running} pods are Running: {page}");
    Ok(())
}

fn until_nothing_is_left(place: &Place, footprint: &Footprint) -> Result<()> {
    ensure!(
        footprint.processes() > 5,
        "only {} processes were seen",
        footprint.processes()
    );
    // What the kernel takes back after the last process may take a moment.
    let _ = wait_until("nothing to be left", Duration::from_secs(20), || {
        Ok(footprint.left()?.is_empty())
    });
    let left = footprint.left()?;
    ensure!(left.is_empty(), "{left:#?}");
    ensure!(!place.folder.exists(), "{} is left", place.folder.display());
    Ok(())
}

#[test]
fn up_and_down_can_both_be_done_twice() -> Result<()> {
    let place = Place::new("twice")?;
    tells_of_the_pod(&place.up()?)?;
    let (holder, pods) = (place.holder()?, place.pods()?);
    ensure!(pods.lines().count() == 1, "there are the pods {pods}");
    let again = place.up()?;
    tells_of_the_pod(&again)?;
    ensure!(again.stdout.contains("the node is up already"), "{again}");
    ensure!(
        place.holder()? == holder && place.pods()? == pods,
        "it made something new"
    );
    let footprint = place.footprint()?;
    let down = place.down()?;
    ensure!(down.stdout.contains("the node is down"), "{down}");
    until_nothing_is_left(&place, &footprint)?;
    let down = place.down()?;
    ensure!(down.stdout.contains("nothing is up"), "{down}");
    Ok(())
}

#[test]
fn a_node_with_a_kubelet_goes_up_and_down_twice() -> Result<()> {
    let place = Place::new("kubelet")?;
    tells_of_the_kubelets_pods(&place.up_with_kubelet()?)?;
    let (holder, pods) = (place.holder()?, place.kubelets_pods()?);
    ensure!(pods.len() == 2, "there are the pods {pods:?}");
    let again = place.up_with_kubelet()?;
    tells_of_the_kubelets_pods(&again)?;
    for fact in ["the node is up already", "the kubelet runs already"] {
        ensure!(again.stdout.contains(fact), "{again}");
    }
    ensure!(
        place.holder()? == holder && place.kubelets_pods()? == pods,
        "it made something new"
    );
    let footprint = place.footprint()?;
    let down = place.down()?;
    ensure!(down.stdout.contains("the node is down"), "{down}");
    ensure!(down.stderr.is_empty(), "{down}");
    until_nothing_is_left(&place, &footprint)?;
    let down = place.down()?;
    ensure!(down.stdout.contains("nothing is up"), "{down}");
    Ok(())
}

#[test]
fn two_nodes_are_up_side_by_side() -> Result<()> {
    let places = [Place::new("left")?, Place::new("right")?];
    std::thread::scope(|scope| {
        let runs = places
            .each_ref()
            .map(|place| scope.spawn(|| tells_of_the_pod(&place.up()?)));
        runs.into_iter()
            .try_for_each(|run| run.join().expect("the runner doesn't panic"))
    })?;
    let footprints = [places[0].footprint()?, places[1].footprint()?];
    places[0].down()?;
    until_nothing_is_left(&places[0], &footprints[0])?;
    tells_of_the_pod(&places[1].up()?)?;
    places[1].down()?;
    until_nothing_is_left(&places[1], &footprints[1])
}

#[test]
fn a_killed_node_is_replaced_or_taken_down() -> Result<()> {
    let place = Place::new("killed")?;
    place.up()?;
    let first = place.footprint()?;
    kill(&place)?;
    let again = place.up()?;
    tells_of_the_pod(&again)?;
    ensure!(!again.stdout.contains("up already"), "{again}");
    let left = first.left()?;
    ensure!(left.is_empty(), "of the first node: {left:#?}");
    let second = place.footprint()?;
    kill(&place)?;
    place.down()?;
    until_nothing_is_left(&place, &second)
}

/// SIGKILL to the node's holder; returns when the node is dead, too.
fn kill(place: &Place) -> Result<()> {
    let (holder, keeper) = (place.holder()?, place.fact("node_keeper")?);
    let killed = Command::new("kill")
        .args(["-KILL", &holder.to_string()])
        .status()?;
    ensure!(killed.success(), "process {holder} can't be killed");
    wait_until("the node's end", PATIENCE, || {
        let status = fs::read_to_string(format!("/proc/{keeper}/status"));
        Ok(
            status.is_ok_and(|status| status.contains("State:\tZ"))
                || !fs::exists(format!("/proc/{keeper}"))?,
        )
    })?;
    Ok(())
}
