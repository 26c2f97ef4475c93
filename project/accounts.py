"""Sign-in, sign-out and sign-up, with a limit on failed sign-ins by django-axes."""

from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.forms import AuthenticationForm, UserCreationForm
from django.contrib.auth.views import LoginView, LogoutView, RedirectURLMixin
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic import FormView


def client_address(request: HttpRequest) -> str | None:
    """Return the visitor's address as the outermost of settings.PROXIES reported it.

    An IPv6 address is that of its /64 network, because one visitor has all addresses of a network.
    Return None if the proxy did not report an IP address.
    """
    forwarded = request.headers.get("X-Forwarded-For", "").split(",")
    hops = [*forwarded, request.META.get("REMOTE_ADDR", "")]
    # Visitors can forge the addresses before the one that the outermost proxy appended.
    try:
        address = ip_address(hops[-1 - settings.PROXIES :][0].strip())
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or IPv6Network((int(address), 64), strict=False)[0]
    return str(address)


def submitted_username(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str:
    """Return the submitted user name, truncated to the column of django-axes."""
    return str((credentials or request.POST).get("username") or "")[:255]


def describe_client(
    username: str, address: str | None, user_agent: str, path: str, request: HttpRequest
) -> str:
    """Name the client in the log lines of django-axes, in one line without control characters."""
    return f"user {username!r} from {address} at {path!r}"


class SignInForm(AuthenticationForm):
    """Sign-in form whose error is described by the field that has the focus."""

    def get_invalid_login_error(self) -> ValidationError:
        return ValidationError({"username": super().get_invalid_login_error()})


@method_decorator([sensitive_post_parameters(), never_cache], name="dispatch")
class SignUpView(RedirectURLMixin, FormView):
    template_name = "accounts/sign_up.html"
    form_class = UserCreationForm
    next_page = settings.LOGIN_REDIRECT_URL

    def form_valid(self, form: UserCreationForm) -> HttpResponse:
        try:
            with transaction.atomic():
                user = form.save()
                login(self.request, user, backend=settings.AUTHENTICATION_BACKENDS[-1])
        except IntegrityError:
            # Someone else took the name after the form was validated.
            form.add_error("username", ValidationError("A user with that username already exists."))
            return self.form_invalid(form)
        return super().form_valid(form)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(next=self.get_redirect_url(), **kwargs)


urlpatterns = [
    path(
        "sign-in/",
        LoginView.as_view(template_name="accounts/sign_in.html", authentication_form=SignInForm),
        name="sign-in",
    ),
    path("sign-out/", LogoutView.as_view(), name="sign-out"),
    path("sign-up/", SignUpView.as_view(), name="sign-up"),
]
