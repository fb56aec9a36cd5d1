//! End-to-end tests of the real binaries against real peers; all of it is in `tests/`.
