pub mod assigned;
pub mod oci_layout;
pub mod simulation;
