"""Sphinx configuration of the HTML pages; `harvest_nb.site` lays out the sources and runs it."""

project = "harvest-nb"
copyright = "the harvest-nb authors"
extensions = ["myst_nb"]
root_doc = "index"
smartquotes = False  # quoted errors stay as they were
exclude_patterns = ["conf.py"]

# Notebooks come executed, through papermill.
nb_execution_mode = "off"
nb_merge_streams = True
# The pages work without a network: no widget scripts, no MathJax, the plain text instead.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [
    ("html", "application/vnd.jupyter.widget-view+json", None),
    ("html", "text/latex", None),
    ("html", "application/javascript", None),
]
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence", "html_image"]
# What the pages quote may be written in any language, and the agent's pages start at any heading.
suppress_warnings = ["misc.highlighting_failure", "myst.header", "mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "harvest-nb"
html_static_path = ["static"]
html_css_files = ["harvest.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2f6f4f", "color-brand-content": "#2f6f4f"},
    "dark_css_variables": {"color-brand-primary": "#7cc49a", "color-brand-content": "#7cc49a"},
}
