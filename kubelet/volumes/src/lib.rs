//! Volumes of pods: from a pod's spec to directories, files and mounts on the node, and back to nothing.
