//! Times of a pull, a snapshot and a start: `pull_times REFERENCE [ROUNDS]`, the reference on a registry that answers
//! by plain HTTP on this machine. Prints medians.

use std::time::Instant;

use cri_images::{Images, ImagesConfig, SnapshotOptions};

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let reference = arguments.next().expect("a reference");
    let rounds: usize = arguments
        .next()
        .map_or(20, |rounds| rounds.parse().expect("a number"));
    let root = std::env::temp_dir().join(format!("orlop-pull-times-{}", std::process::id()));
    let (mut pulls, mut again, mut snapshots, mut removes, mut opens) =
        (vec![], vec![], vec![], vec![], vec![]);
    let time = |began: Instant| began.elapsed().as_secs_f64() * 1000.0;
    for _ in 0..rounds {
        let began = Instant::now();
        let images = Images::open(ImagesConfig::new(&root)).await.expect("opens");
        opens.push(time(began));
        let began = Instant::now();
        let image = images.pull(&reference, None).await.expect("pulls");
        pulls.push(time(began));
        let began = Instant::now();
        images.pull(&reference, None).await.expect("pulls");
        again.push(time(began));
        for n in 0..20 {
            let began = Instant::now();
            images
                .prepare(&n.to_string(), &image.id, SnapshotOptions::default())
                .await
                .expect("prepares");
            snapshots.push(time(began));
        }
        drop(images);
        let began = Instant::now();
        let images = Images::open(ImagesConfig::new(&root)).await.expect("opens");
        opens.push(time(began));
        for n in 0..20 {
            let began = Instant::now();
            images.remove_snapshot(&n.to_string()).await.expect("removes");
            removes.push(time(began));
        }
        images.remove(&image.id).await.expect("removes");
    }
    std::fs::remove_dir_all(&root).expect("removes the store");
    println!(
        "ms: pull {:.1}, again {:.1}, prepare {:.2}, remove snapshot {:.2}, open {:.1}",
        median(pulls),
        median(again),
        median(snapshots),
        median(removes),
        median(opens)
    );
}
