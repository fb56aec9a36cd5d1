//! The CRI log: nothing lost, whatever happens to the file.

use std::fs;

use cri_shim_protocol::Request;

use crate::pod::{Pod, builtin, crun, eventually, joined, records, runc};

#[test]
fn long_lines_are_cut_into_parts_and_an_unfinished_one_is_kept() {
    for runtime in [runc(), builtin()] {
        let mut pod = Pod::new(runtime);
        let mut wish = pod.wish("c1", "echo 0123456789abcdefghij; echo short; echo -n open");
        wish.create.max_log_line = 8;
        pod.create_wish(wish).unwrap();
        pod.start("c1");
        pod.client.exit("c1");
        let log: Vec<_> = pod
            .log("c1")
            .into_iter()
            .map(|(_, tag, text)| format!("{tag} {text}"))
            .collect();
        assert_eq!(log, ["P 01234567", "P 89abcdef", "F ghij", "F short", "P open"]);
    }
}

#[test]
fn a_container_of_another_user_can_open_its_streams_by_name() {
    for runtime in [runc(), crun(), builtin()] {
        let mut pod = Pod::new(runtime);
        let mut wish = pod.wish(
            "c1",
            "id -u; echo one > /proc/self/fd/1; echo two > /proc/self/fd/2",
        );
        wish.config["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 });
        pod.create_wish(wish).unwrap();
        pod.start("c1");
        assert_eq!(pod.client.exit("c1").code, 0, "{:?}", pod.log("c1"));
        assert_eq!(pod.lines("c1", "stdout"), ["1000", "one"]);
        assert_eq!(pod.lines("c1", "stderr"), ["two"]);
    }
}

#[test]
fn rotation_under_load_loses_and_tears_no_line() {
    for runtime in [runc(), builtin()] {
        rotate(Pod::new(runtime));
    }
}

fn rotate(mut pod: Pod) {
    const LINES: usize = 300_000;
    pod.create("c1", &format!("seq 1 {LINES}"));
    pod.start("c1");
    let path = pod.log_path("c1");
    let mut rotated = Vec::new();
    for n in 0..20 {
        let old = pod.folder.join(format!("c1.log.{n}"));
        fs::rename(&path, &old).unwrap();
        rotated.push(old);
        pod.client.done(Request::ReopenLog {
            container: "c1".to_owned(),
        });
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    pod.client.exit("c1");
    rotated.push(path);
    let mut all = Vec::new();
    for file in &rotated {
        all.extend(records(&fs::read_to_string(file).unwrap()));
    }
    let filled = rotated
        .iter()
        .filter(|f| fs::metadata(f).unwrap().len() > 0)
        .count();
    assert!(filled > 2, "the load was over before the rotation");
    let lines = joined(all, "stdout");
    let expected: Vec<String> = (1..=LINES).map(|n| n.to_string()).collect();
    assert_eq!(lines.len(), expected.len());
    assert!(lines == expected, "lines differ");
}

#[test]
fn all_output_is_in_the_log_before_the_exit_is_told() {
    for runtime in [runc(), builtin()] {
        let mut pod = Pod::new(runtime);
        for n in 0..10 {
            let id = format!("c{n}");
            pod.run(&id, "seq 1 3000");
            pod.client.exit(&id);
            let lines = pod.lines(&id, "stdout");
            assert_eq!(lines.len(), 3000);
            assert_eq!(lines[2999], "3000");
        }
    }
}

#[test]
fn output_of_what_outlives_init_does_not_hold_up_the_exit() {
    let mut pod = Pod::new(runc());
    let mut wish = pod.wish("c1", "(sleep 2; echo late) & echo early");
    // Without a PID namespace of its own, a container's processes may outlive its init.
    let namespaces = wish.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|n| n["type"] != "pid");
    pod.create_wish(wish).unwrap();
    let started = std::time::Instant::now();
    pod.start("c1");
    pod.client.exit("c1");
    assert!(started.elapsed() < std::time::Duration::from_millis(1900));
    assert_eq!(pod.lines("c1", "stdout"), ["early"]);
    eventually("late output is in the log", || {
        pod.lines("c1", "stdout") == ["early", "late"]
    });
}

#[test]
fn a_full_disk_blocks_nobody_and_is_noted() {
    let mut pod = Pod::new(runc());
    let disk = pod.folder.join("disk");
    fs::create_dir(&disk).unwrap();
    // Mounted in the shim's namespace only; seen from here through its root.
    let mounted = std::process::Command::new("nsenter")
        .args(["--mount", "--target", &pod.shim.id().to_string()])
        .args(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&disk)
        .status()
        .unwrap();
    assert!(mounted.success());
    let seen = format!("/proc/{}/root{}", pod.shim.id(), disk.display());
    let mut wish = pod.wish("c1", "seq 1 20000; echo done >&2; read go; echo after");
    wish.create.log_path = Some(disk.join("c1.log"));
    wish.create.stdin = true;
    pod.create_wish(wish).unwrap();
    let mut attached = crate::attach::Attachment::new(&mut pod, "c1", true, false, true);
    pod.start("c1");
    // The container gets to its end of the loop although its log takes no more.
    assert_eq!(attached.read_until(b"done\n"), b"done\n");
    let log = fs::read_to_string(format!("{seen}/c1.log")).unwrap();
    records(&log);
    // Rotation makes room.
    fs::remove_file(format!("{seen}/c1.log")).unwrap();
    pod.client.done(Request::ReopenLog {
        container: "c1".to_owned(),
    });
    attached.write(b"go\n");
    pod.client.exit("c1");
    let log = records(&fs::read_to_string(format!("{seen}/c1.log")).unwrap());
    let texts: Vec<&str> = log.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(
        texts[0].contains("records of this log were lost: No space left on device"),
        "{texts:?}"
    );
    assert_eq!(texts[1], "after");
}
