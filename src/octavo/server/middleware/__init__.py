"""The checks that every request passes before the application: one small ASGI middleware each.

`wrap_in_middleware` states their order. The first check that fails rejects the request before anything is allocated
for it: the body is read only after the headers have passed.
"""

from collections.abc import Collection, Mapping

from starlette.types import ASGIApp

from octavo.server.client import RateLimits
from octavo.server.limits import Limits
from octavo.server.metrics import Metrics
from octavo.server.middleware.access_log import AccessLog
from octavo.server.middleware.auth import ApiKeys
from octavo.server.middleware.body import BodyLimits
from octavo.server.middleware.compression import Compression
from octavo.server.middleware.cors import Cors
from octavo.server.middleware.drain import Drain
from octavo.server.middleware.header_limits import HeaderLimits
from octavo.server.middleware.hosts import Hosts
from octavo.server.middleware.rate_limit import RateLimit
from octavo.server.middleware.request_line import RequestLine
from octavo.server.middleware.request_metrics import RequestMetrics
from octavo.server.middleware.security_headers import SecurityHeaders


def wrap_in_middleware(
    app: ASGIApp,
    limits: Limits,
    metrics: Metrics,
    *,
    host: str,
    allow_hosts: Collection[str] = (),
    allow_origins: Collection[str] = (),
    keys: Mapping[str, str],
    rate_limits: RateLimits,
    root_path: str,
) -> tuple[ASGIApp, Drain]:
    """The application wrapped in all middleware, and the `Drain`, through which `Server` shuts down gracefully.

    The middleware that is applied last is the outermost and sees a request first. That is the log, which has each
    request as it came, with the id that `SecurityHeaders` gives it. `RequestLine` comes before all others that look at
    the method or the path. Metrics and security headers see every response, refusals included. The host is checked
    before the origin, because a page that uses DNS rebinding passes the origin check. Drain comes before the keys, so
    that a client without a key learns that the server shuts down. The rate limit of the key comes next, and the body is
    read last.
    """
    app = Compression(app)
    app = BodyLimits(app, limits)
    app = RateLimit(app, limits)
    app = ApiKeys(app, limits, keys, rate_limits, metrics)
    app = drain = Drain(app, limits)
    app = Cors(app, limits, allow_origins)
    app = Hosts(app, limits, host, allow_hosts)
    app = HeaderLimits(app, limits)
    app = SecurityHeaders(app)
    app = RequestMetrics(app, metrics)
    app = RequestLine(app, root_path)
    app = AccessLog(app)
    return app, drain
