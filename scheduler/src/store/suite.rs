//! The rules of [`super::Store`], tried on every implementation.
