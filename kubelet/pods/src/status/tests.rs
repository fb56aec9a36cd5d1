//! Statuses of small pods.
