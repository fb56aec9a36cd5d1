//! Ladders of delays.
