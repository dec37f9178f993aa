//! Part of multimaster.
