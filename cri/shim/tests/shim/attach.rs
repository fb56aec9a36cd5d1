//! Attached clients: input, output, and those that don't read.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use cri_shim_protocol::attach::{HEADER_BYTES, Stream, header, parse_header};
use cri_shim_protocol::{ErrorKind, Reply, Request};

use crate::pod::{PATIENCE, Pod, builtin, eventually, runc};

pub(crate) struct Attachment {
    socket: UnixStream,
}

impl Attachment {
    pub(crate) fn new(pod: &mut Pod, container: &str, stdin: bool, stdout: bool, stderr: bool) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = Request::Attach {
            container: container.to_owned(),
            stdin,
            stdout,
            stderr,
        };
        let (reply, _) = pod.client.call_with(request, vec![OwnedFd::from(theirs)]);
        assert_eq!(reply, Ok(Reply::Done));
        Self { socket }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let header = header(Stream::Stdin, u32::try_from(bytes.len()).unwrap());
        self.socket.write_all(&[&header, bytes].concat()).unwrap();
    }

    /// The next chunk; `None` at the end.
    pub(crate) fn read(&mut self) -> Option<(Stream, Vec<u8>)> {
        let mut bytes = [0; HEADER_BYTES];
        if let Err(error) = self.socket.read_exact(&mut bytes) {
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
            return None;
        }
        let (stream, len) = parse_header(bytes).unwrap();
        let mut chunk = vec![0; len];
        self.socket.read_exact(&mut chunk).unwrap();
        Some((stream, chunk))
    }

    /// Reads output until it ends like this.
    pub(crate) fn read_until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(end) {
            let (stream, chunk) = self.read().expect("the stream ended early");
            assert_ne!(stream, Stream::Reason, "{}", String::from_utf8_lossy(&chunk));
            all.extend(chunk);
        }
        all
    }
}

#[test]
fn several_clients_share_a_container() {
    for runtime in [runc(), builtin()] {
        let mut pod = Pod::new(runtime);
        let mut wish = pod.wish("c1", "while read line; do echo got $line; done; echo eof >&2");
        wish.create.stdin = true;
        wish.create.stdin_once = true;
        pod.create_wish(wish).unwrap();
        let mut one = Attachment::new(&mut pod, "c1", true, true, true);
        let mut two = Attachment::new(&mut pod, "c1", false, true, false);
        pod.start("c1");
        one.write(b"hello\n");
        assert_eq!(one.read_until(b"\n"), b"got hello\n");
        assert_eq!(two.read_until(b"\n"), b"got hello\n");
        // Its stdin ends, and with `stdin_once` the container's.
        one.write(b"");
        assert_eq!(one.read(), Some((Stream::Stderr, b"eof\n".to_vec())));
        assert_eq!(one.read(), None);
        assert_eq!(two.read(), None);
        assert_eq!(pod.client.exit("c1").code, 0);
        assert_eq!(pod.lines("c1", "stdout"), ["got hello"]);
    }
}

#[test]
fn stdin_that_is_not_once_outlives_its_client() {
    let mut pod = Pod::new(runc());
    let mut wish = pod.wish("c1", "read a; read b; echo $a-$b");
    wish.create.stdin = true;
    pod.create_wish(wish).unwrap();
    pod.start("c1");
    let mut one = Attachment::new(&mut pod, "c1", true, true, true);
    one.write(b"1\n");
    drop(one);
    let mut two = Attachment::new(&mut pod, "c1", true, true, true);
    two.write(b"2\n");
    assert_eq!(two.read_until(b"\n"), b"1-2\n");
    pod.client.exit("c1");
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let request = Request::Attach {
        container: "c1".to_owned(),
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let (reply, _) = pod.client.call_with(request, vec![OwnedFd::from(theirs)]);
    assert_eq!(reply.unwrap_err().kind, ErrorKind::WrongState);
}

#[test]
fn a_large_stdin_arrives_whole_however_slowly_it_is_read() {
    let mut pod = Pod::new(runc());
    let mut wish = pod.wish("c1", "sleep 0.5; busybox md5sum");
    wish.create.stdin = true;
    wish.create.stdin_once = true;
    pod.create_wish(wish).unwrap();
    pod.start("c1");
    let mut client = Attachment::new(&mut pod, "c1", true, true, true);
    for _ in 0..100 {
        client.write(&[b'x'; 10_000]);
    }
    // Leaves at once; what it sent is still to be delivered.
    client.socket.shutdown(std::net::Shutdown::Write).unwrap();
    let got = client.read_until(b"-\n");
    let sum = std::process::Command::new("sh")
        .args(["-c", "head -c 1000000 /dev/zero | tr '\\0' x | md5sum"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&got),
        String::from_utf8_lossy(&sum.stdout)
    );
    pod.client.exit("c1");
}

#[test]
fn a_client_that_does_not_read_is_told_and_disconnected_while_output_goes_on() {
    let mut pod = Pod::new(runc());
    // With pauses, so that a client that reads keeps up on a busy machine too.
    let script = "for i in $(seq 1 100); do seq 100001 104000; sleep 0.02; done; echo end; sleep 1000";
    pod.create("c1", script);
    let mut slow = Attachment::new(&mut pod, "c1", false, true, true);
    let mut fast = Attachment::new(&mut pod, "c1", false, true, true);
    let reader = std::thread::spawn(move || fast.read_until(b"end\n").len());
    pod.start("c1");
    // 2.8 MB have gone through to the log and to the other client.
    assert!(reader.join().unwrap() > 2_600_000);
    eventually("the log has the end", || {
        std::fs::read_to_string(pod.log_path("c1")).is_ok_and(|log| log.ends_with("F end\n"))
    });
    let (mut last, mut sum) = (None, 0);
    while let Some((stream, chunk)) = slow.read() {
        sum += chunk.len();
        last = Some((stream, String::from_utf8(chunk).unwrap()));
    }
    let (stream, reason) = last.unwrap();
    assert_eq!(stream, Stream::Reason);
    assert!(reason.contains("1048576 bytes"), "{reason}");
    assert!(
        sum < 2_000_000,
        "{sum} bytes were kept for a client that did not read"
    );
}

#[test]
fn a_malformed_chunk_disconnects_only_its_client() {
    let mut pod = Pod::new(runc());
    let mut wish = pod.wish("c1", "read x; echo $x");
    wish.create.stdin = true;
    pod.create_wish(wish).unwrap();
    pod.start("c1");
    let mut bad = Attachment::new(&mut pod, "c1", true, true, true);
    let mut good = Attachment::new(&mut pod, "c1", true, true, true);
    bad.socket.write_all(&[99; 20]).unwrap();
    assert_eq!(bad.read(), None);
    good.write(b"fine\n");
    assert_eq!(good.read_until(b"\n"), b"fine\n");
}

#[test]
fn terminals_are_logged_attached_and_resized() {
    for runtime in [runc(), builtin()] {
        let mut pod = Pod::new(runtime);
        let mut wish = pod.wish("c1", "read x; stty size; echo bye; exit 4");
        wish.config["process"]["terminal"] = true.into();
        wish.create.terminal = true;
        wish.create.stdin = true;
        pod.create_wish(wish).unwrap();
        let mut client = Attachment::new(&mut pod, "c1", true, true, false);
        pod.start("c1");
        pod.client.done(Request::Resize {
            container: "c1".to_owned(),
            width: 132,
            height: 43,
        });
        client.write(b"go\n");
        let output = client.read_until(b"bye\r\n");
        let output = String::from_utf8(output).unwrap();
        assert!(output.contains("43 132\r\n"), "{output:?}");
        assert_eq!(pod.client.exit("c1").code, 4);
        assert!(pod.lines("c1", "stdout").contains(&"bye\r".to_owned()));
    }
}
