//! cephx: proving who we are, and tickets that prove it to others.
