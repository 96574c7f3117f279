"""Sphinx extension: what the book's pages need beside the theme."""


def setup(app):
    # Jupyter Book always sets this one, which belongs to an extension left out here.
    app.add_config_value("comments_config", {}, "html")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
