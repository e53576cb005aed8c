//! Pictures and tables of what the scheduler says. Pure: values and `now` in, text out.

pub(crate) mod explain;
pub(crate) mod plan;
pub(crate) mod status;
pub(crate) mod text;
