pub mod oci_layout;
