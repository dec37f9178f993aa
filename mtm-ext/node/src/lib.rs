//! What one node does with its machines.
