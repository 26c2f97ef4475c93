"""Sphinx configuration. Build the site with `make docs`; warnings fail the build."""

project = "Live enrollment counts"
html_title = project
html_theme = "furo"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]

# GitHub draws the same ```mermaid fences.
myst_fence_as_directive = ["mermaid"]
# Give headings the anchors that GitHub gives them, so that links work in both places.
myst_heading_anchors = 3
# Report links to pages and anchors that do not exist.
nitpicky = True
