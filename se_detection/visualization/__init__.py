"""Drawing on images, charts, and self-contained HTML pages without scripts."""
