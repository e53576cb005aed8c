pub mod oci_layout;
pub mod simulation;
