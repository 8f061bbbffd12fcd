//! CRUSH: from a placement group to an ordered list of OSDs.
