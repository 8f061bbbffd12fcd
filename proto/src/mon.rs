//! The monitor client: hunting, subscriptions, commands, tickets.
