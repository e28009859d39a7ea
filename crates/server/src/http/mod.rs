//! HTTP: connections, the request pipeline, routing, negotiation, answers.

pub mod dispatch;
mod gather;
pub mod negotiate;
pub mod nonresource;
pub mod pipeline;
pub mod respond;
pub mod route;
pub mod serve;
mod time_limit;
