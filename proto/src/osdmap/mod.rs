//! The OSD map: pools, OSDs, and where each object lives.
