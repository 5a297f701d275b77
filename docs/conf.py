"The site's settings; `docs/build.py` lays out what they are applied to."
import re

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

project = "mlops_nb"
author = "the authors of mlops_nb"
extensions = ["myst_nb"]
root_doc = "docs/index"
exclude_patterns = ["**/.ipynb_checkpoints"]

nb_execution_mode = "off"  # the notebooks keep their outputs, and `make test` runs them
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_code_prompt_show = nb_code_prompt_hide = "Source"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
# a function is documented at level 3, whatever stands above it
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

html_theme = "pydata_sphinx_theme"
html_title = "mlops_nb"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_theme_options = dict(
    logo={"text": "mlops_nb"},
    navbar_end=["theme-switcher"],
    navbar_persistent=["search-button"],
    header_links_before_dropdown=8,
    show_nav_level=1,
    navigation_with_keys=False,
    footer_start=[],
    footer_end=[],
    secondary_sidebar_items=["page-toc"],
)
html_math_renderer = "mathml"


def math_source(node):
    "The formula without sizes of brackets, which docutils does not know and a browser sets itself."
    return re.sub(r"\\[bB]igg?[lmr]?(?![a-zA-Z])", "", node.astext())


def visit_math(self, node):
    self.body.append(tex2mathml(math_source(node)))
    raise SkipNode


def visit_math_block(self, node):
    self.body.append(tex2mathml(math_source(node), as_block=True))
    raise SkipNode


def setup(app):
    "Formulas as MathML: browsers set it themselves, where MathJax would be fetched from a public server."
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
