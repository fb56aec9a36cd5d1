//! An NRI connection as it is read: pieces with heads, ttrpc messages across pieces, requests and answers in them. What
//! was understood, written by us and read again, is the same.
#![no_main]

use cri_nri::mux::{self, parse_head};
use cri_nri::ttrpc::{Frame, Frames, Request, Response};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// The messages in a stream of pieces, until one makes no sense.
fn read(mut bytes: &[u8]) -> Vec<(u32, Frame)> {
    let mut found = Vec::new();
    let mut streams = [Frames::default(), Frames::default()];
    while let Some((head, rest)) = bytes.split_first_chunk() {
        let Ok((connection, length)) = parse_head(*head) else {
            break;
        };
        let (piece, rest) = rest.split_at(length.min(rest.len()));
        bytes = rest;
        let stream = match connection {
            mux::PLUGIN => &mut streams[0],
            mux::RUNTIME => &mut streams[1],
            _ => continue,
        };
        stream.push(piece);
        loop {
            match stream.next_frame() {
                Ok(Some(frame)) => found.push((connection, frame)),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}

fuzz_target!(|bytes: &[u8]| {
    let found = read(bytes);
    let mut written = Vec::new();
    for (connection, frame) in &found {
        let encoded = frame.encode().expect("it was short enough to be read");
        written.extend(mux::encode(*connection, &encoded));
        if let Ok(request) = Request::decode(frame.body.as_slice()) {
            let again = Request::decode(request.encode_to_vec().as_slice()).expect("our own message is one");
            assert_eq!(again, request);
        }
        if let Ok(response) = Response::decode(frame.body.as_slice()) {
            let again =
                Response::decode(response.encode_to_vec().as_slice()).expect("our own message is one");
            assert_eq!(again, response);
        }
    }
    assert_eq!(read(&written), found);
});
