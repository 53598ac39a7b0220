"""All pages, added to the app."""

from collections.abc import Callable

from fastapi import FastAPI
from jinja2 import BaseLoader, Environment
from nicegui import ui
from nicegui.client import templates
from starlette.staticfiles import StaticFiles

from compose.dashboard.pages import batch, device, fleet, learning, overview, quality, releases
from compose.dashboard.pages.site import HEAD, STATIC, Site
from compose.dashboard.web.guard import NONCE


class WithNonce(BaseLoader):
    """The library's template with the nonce of the answer in each script of its own source: what
    a page's data brings into it later has none."""

    def __init__(self, inner: BaseLoader) -> None:
        self._inner = inner

    def get_source(
        self, environment: Environment, template: str
    ) -> tuple[str, str | None, Callable[[], bool] | None]:
        source, path, is_current = self._inner.get_source(environment, template)
        mark = f'<script nonce="{{{{ request.scope["{NONCE}"] }}}}"'
        return source.replace("<script", mark), path, is_current


def add_pages(app: FastAPI, site: Site) -> None:
    """Add all pages to the app."""
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    ui.add_head_html(HEAD, shared=True)
    library = templates.env
    if not isinstance(library.loader, WithNonce):
        assert library.loader is not None
        library.loader = WithNonce(library.loader)
    for page in (overview, fleet, device, learning, releases, quality, batch):
        page.add(site)
    ui.run_with(
        app,
        title="Tidewheel",
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        gzip_middleware_factory=None,
        reconnect_timeout=10.0,
        binding_refresh_interval=None,
    )
