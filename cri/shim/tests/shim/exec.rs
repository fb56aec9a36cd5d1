//! Processes in running containers.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use cri_shim_protocol::{ErrorKind, Reply, Request};

use crate::pod::{Pod, builtin, crun, runc};

fn streams(mut pod: Pod) {
    pod.run("c1", "sleep 1000");
    let (their_in, mut stdin) = std::io::pipe().unwrap();
    let (mut stdout, their_out) = std::io::pipe().unwrap();
    let (mut stderr, their_err) = std::io::pipe().unwrap();
    let mut exec = pod.exec_request("c1", "e1", "read x; echo got $x; echo bad >&2; exit 5");
    (exec.stdin, exec.stderr) = (true, true);
    let fds: Vec<OwnedFd> = vec![their_in.into(), their_out.into(), their_err.into()];
    let (reply, back) = pod.client.call_with(Request::Exec(exec), fds);
    let Ok(Reply::ExecStarted { pid, console: false }) = reply else {
        panic!("{reply:?}");
    };
    assert!(pid > 0 && back.is_empty());
    stdin.write_all(b"this\n").unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got this\n");
    text.clear();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bad\n");
    assert_eq!(pod.client.exec_exit("e1").code, 5);
}

#[test]
fn streams_are_passed_straight_through() {
    streams(Pod::new(runc()));
    streams(Pod::new(crun()));
}

#[test]
fn streams_are_passed_straight_through_builtin() {
    streams(Pod::new(builtin()));
}

fn refusals(mut pod: Pod) {
    pod.create("c1", "sleep 1000");
    let (_ours, theirs) = std::io::pipe().unwrap();
    let theirs = OwnedFd::from(theirs);
    let copy = || vec![theirs.try_clone().unwrap()];
    let exec = pod.exec_request("c1", "e1", "true");
    let refused = |pod: &mut Pod, exec: cri_shim_protocol::Exec| {
        let (reply, _) = pod.client.call_with(Request::Exec(exec), copy());
        reply.expect_err("not refused")
    };
    assert_eq!(refused(&mut pod, exec.clone()).kind, ErrorKind::WrongState);
    pod.start("c1");
    let mut nope = exec.clone();
    nope.process = nope.process.replace("\"sh\"", "\"no-such-command\"");
    let error = refused(&mut pod, nope);
    assert_eq!(error.kind, ErrorKind::CommandNotFound, "{}", error.message);
    let mut bad = exec.clone();
    bad.process = "{".to_owned();
    assert_eq!(refused(&mut pod, bad).kind, ErrorKind::Invalid);
    let mut unknown = exec.clone();
    unknown.container = "c9".to_owned();
    assert_eq!(refused(&mut pod, unknown).kind, ErrorKind::NotFound);
    // Without its descriptor.
    pod.client
        .refused(Request::Exec(exec.clone()), ErrorKind::Invalid);
    // The name is free after all that.
    let (exit, text) = pod.exec_output("c1", "echo fine");
    assert_eq!((exit.code, text.as_str()), (0, "fine\n"));
}

#[test]
fn what_cannot_be_executed_is_refused_with_its_kind() {
    refusals(Pod::new(runc()));
    refusals(Pod::new(crun()));
}

#[test]
fn what_cannot_be_executed_builtin_is_refused_with_its_kind() {
    refusals(Pod::new(builtin()));
}

#[test]
fn an_exec_that_runs_is_listed_and_ends_with_its_container() {
    let mut pod = Pod::new(builtin());
    pod.run("c1", "sleep 1000");
    let (_ours, theirs) = std::io::pipe().unwrap();
    let exec = pod.exec_request("c1", "e1", "sleep 1000");
    let (reply, _) = pod.client.call_with(Request::Exec(exec), vec![theirs.into()]);
    reply.unwrap();
    let Ok(Reply::State(state)) = pod.client.call(Request::State) else {
        panic!("no state");
    };
    assert_eq!(state.containers[0].execs, ["e1"]);
    pod.client.done(Request::Delete {
        container: "c1".to_owned(),
        force: true,
    });
    assert_eq!(pod.client.exec_exit("e1").code, 137);
}

fn killed(mut pod: Pod) {
    pod.run("c1", "sleep 1000");
    let exec = pod.exec_request("c1", "e1", "exec sleep 1000");
    let (_ours, theirs) = std::io::pipe().unwrap();
    let kill = |signal| Request::KillExec {
        container: "c1".to_owned(),
        exec: "e1".to_owned(),
        signal,
    };
    // Sent before the answer: it finds the process when that exists.
    let started = pod
        .client
        .send(Request::Exec(exec.clone()), vec![theirs.into()])
        .unwrap();
    let signalled = pod.client.send(kill(9), Vec::new()).unwrap();
    assert!(pod.client.wait(started).unwrap().is_ok());
    assert_eq!(pod.client.wait(signalled).unwrap(), Ok(Reply::Done));
    assert_eq!(pod.client.exec_exit("e1").code, 137);
    pod.client.refused(kill(9), ErrorKind::NotFound);
}

#[test]
fn an_exec_can_be_killed_even_before_it_has_started() {
    killed(Pod::new(runc()));
    killed(Pod::new(builtin()));
}

fn terminal(mut pod: Pod) {
    pod.run("c1", "sleep 1000");
    // The size is there before our own runtime's process; a foreign one may not know of it.
    let wait = if pod.runtime == builtin() {
        ""
    } else {
        "sleep 0.3; "
    };
    let mut exec = pod.exec_request(
        "c1",
        "e1",
        &format!("{wait}stty size; read x; echo got $x; exit 6"),
    );
    exec.process = exec.process.replace("\"terminal\":false", "\"terminal\":true");
    (exec.stdout, exec.size) = (false, Some((100, 30)));
    let (reply, mut back) = pod.client.call_with(Request::Exec(exec), Vec::new());
    assert!(
        matches!(reply, Ok(Reply::ExecStarted { console: true, .. })),
        "{reply:?}"
    );
    let mut console = std::fs::File::from(back.pop().unwrap());
    console.write_all(b"this\n").unwrap();
    let (mut all, mut bytes) = (Vec::new(), [0; 256]);
    // The end of a terminal is an error.
    while let Ok(n) = console.read(&mut bytes) {
        all.extend_from_slice(&bytes[..n]);
    }
    let text = String::from_utf8(all).unwrap();
    assert!(
        text.contains("30 100\r\n") && text.contains("got this\r\n"),
        "{text:?}"
    );
    assert_eq!(pod.client.exec_exit("e1").code, 6);
}

#[test]
fn a_terminal_comes_back_as_a_descriptor() {
    terminal(Pod::new(runc()));
    terminal(Pod::new(crun()));
}

#[test]
fn a_builtin_terminal_comes_back_as_a_descriptor() {
    terminal(Pod::new(builtin()));
}

#[test]
fn many_execs_at_once_each_get_their_own_exit() {
    for runtime in [runc(), builtin()] {
        let mut pod = Pod::new(runtime);
        pod.run("c1", "sleep 1000");
        let mut ids = Vec::new();
        for n in 0..20 {
            let (_ours, theirs) = std::io::pipe().unwrap();
            let exec = pod.exec_request("c1", &format!("e{n}"), &format!("exit {n}"));
            ids.push(pod.client.send(Request::Exec(exec), vec![theirs.into()]).unwrap());
        }
        for (n, id) in ids.into_iter().enumerate() {
            pod.client.wait(id).unwrap().unwrap();
            assert_eq!(
                pod.client.exec_exit(&format!("e{n}")).code,
                i32::try_from(n).unwrap()
            );
        }
    }
}
