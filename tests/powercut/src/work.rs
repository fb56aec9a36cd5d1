//! The workload that the power cut meets: images come and go, pods come and go, until the machine is gone.
//!
//! Every image belongs to one worker, so that the order of the journal's lines is the order in which things happened to
//! it. Layers are shared between the images of different workers, and between images and running containers.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::Result;
use tokio::task::LocalSet;

use crate::cri::Cri;
use crate::journal::{Deed, Journal, When};
use crate::random::Random;

/// The image of the workload's pods: another worker never touches it.
pub(crate) const POD_IMAGE: &str = "orlop.test/busybox:1";
/// Images that come and go. All have a shell.
pub(crate) const IMAGES: [&str; 7] = [
    "orlop.test/demo:latest",
    "orlop.test/whiteouts:1",
    "orlop.test/many-layers:1",
    "orlop.test/many-files:1",
    "orlop.test/zstd:1",
    "orlop.test/docker-manifest:1",
    "orlop.test/index:1",
];
/// Workers that pull and remove.
const PULLERS: usize = 2;
/// Workers that run pods, and how many pods each keeps.
const RUNNERS: usize = 2;
const KEPT: usize = 2;
/// Names are used again, but not those of the pods that are kept: the oldest goes first.
const NAMES: u64 = 5;

type Shared = Rc<RefCell<Journal>>;

/// Works until the power goes. Only a failure ends it before.
pub(crate) fn work(runtime: &tokio::runtime::Runtime, cri: &Cri, journal: Journal, seed: u64) -> Result<()> {
    let journal = Rc::new(RefCell::new(journal));
    let tasks = LocalSet::new();
    let mut workers = Vec::new();
    for puller in 0..PULLERS {
        let images = IMAGES.iter().skip(puller).step_by(PULLERS).copied().collect();
        let random = Random::new(seed, puller as u64);
        workers.push(tasks.spawn_local(pull_and_remove(cri.clone(), journal.clone(), images, random)));
    }
    tasks.block_on(runtime, pull(&mut cri.clone(), &journal, POD_IMAGE))?;
    for runner in 0..RUNNERS {
        let random = Random::new(seed, 100 + runner as u64);
        workers.push(tasks.spawn_local(run_pods(cri.clone(), runner, random)));
    }
    println!("working");
    tasks.block_on(runtime, async {
        for worker in workers {
            worker.await??;
        }
        Ok(())
    })
}

async fn pull(cri: &mut Cri, journal: &Shared, image: &str) -> Result<()> {
    journal.borrow_mut().write(When::Begun, Deed::Pull, image)?;
    cri.pull(image).await?;
    journal.borrow_mut().write(When::Done, Deed::Pull, image)
}

async fn remove(cri: &mut Cri, journal: &Shared, image: &str) -> Result<()> {
    journal.borrow_mut().write(When::Begun, Deed::Remove, image)?;
    cri.remove_image(image).await?;
    journal.borrow_mut().write(When::Done, Deed::Remove, image)
}

/// Pulls more often than it removes, so that many images are there when the power goes.
async fn pull_and_remove(
    mut cri: Cri,
    journal: Shared,
    images: Vec<&'static str>,
    mut random: Random,
) -> Result<()> {
    let names = cri.image_names().await?;
    let mut present: BTreeSet<&str> = images
        .iter()
        .copied()
        .filter(|&image| names.iter().any(|name| name == image))
        .collect();
    loop {
        let image = images[random.index(images.len())];
        if !present.contains(image) {
            pull(&mut cri, &journal, image).await?;
            present.insert(image);
        } else if random.percent(60) {
            remove(&mut cri, &journal, image).await?;
            present.remove(image);
        } else {
            // Again, which changes nothing: the registry is asked all the same.
            pull(&mut cri, &journal, image).await?;
        }
    }
}

async fn run_pods(mut cri: Cri, runner: usize, mut random: Random) -> Result<()> {
    let mut kept: Vec<String> = Vec::new();
    for number in 0.. {
        let name = format!("pod-{runner}-{}", number % NAMES);
        let pod = cri.run_pod(&name, 2 * number + runner as u64).await?;
        for container in 0..=random.below(2) {
            let script = if random.percent(50) {
                "exit 0"
            } else {
                "echo data > /file; sleep 1000"
            };
            let of = (pod.as_str(), name.as_str());
            let container = cri
                .create(of, &format!("c{container}"), POD_IMAGE, script)
                .await?;
            if random.percent(80) {
                cri.start(&container).await?;
            }
            if script == "exit 0" && random.percent(50) {
                cri.remove_container(&container).await?;
            }
        }
        kept.push(pod);
        if kept.len() > KEPT {
            let pod = kept.remove(0);
            cri.remove_pod(&pod).await?;
        }
    }
    Ok(())
}
