"""Wing: measures of detectors and of generated audio. It may import the core; the core never imports it."""
