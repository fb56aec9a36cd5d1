//! What is cleared away: unused images, dead containers and their sandboxes, old logs.
//!
//! [`images`] and [`containers`] decide only: they are handed what the runtime lists, and return what to remove and in
//! which order. [`logs`] rotates the logs of running containers itself, with the runtime's `ReopenContainerLog` as its
//! seam.

pub mod containers;
pub mod images;
pub mod logs;

#[cfg(test)]
mod tests;
