//! Admission of small pods to a small node.
