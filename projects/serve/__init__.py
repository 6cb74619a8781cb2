"""A web page to try one or two trained detectors on images."""
