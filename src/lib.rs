//! Crewcast.
