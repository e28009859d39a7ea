//! Server-side apply: scenarios, and a slow independent model it must agree with.

mod reference;
mod scenarios;
