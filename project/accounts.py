"""Sign-in, sign-out and sign-up, with a limit on failed sign-ins by django-axes."""

import logging
from copy import copy
from datetime import timedelta
from ipaddress import IPv6Address, IPv6Network, ip_address
from math import ceil
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.forms import AuthenticationForm, UserCreationForm
from django.contrib.auth.validators import ASCIIUsernameValidator
from django.contrib.auth.views import LoginView, LogoutView, RedirectURLMixin
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic import FormView

from courses.transactions import retry_transaction
from enrollments.models import SelfRegistration

logger = logging.getLogger(__name__)

SIGN_UP_PERIOD = timedelta(hours=1)  # of settings.SIGN_UPS_PER_HOUR


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


class SignUpForm(UserCreationForm):
    class Meta(UserCreationForm.Meta):
        model = get_user_model()
        help_texts = {
            "username": "At most 150 characters: unaccented letters, digits and @/./+/-/_ only."
        }

    def clean_username(self) -> str:
        # Letters of other scripts can look like Latin ones: a Cyrillic “аdmin”.
        ASCIIUsernameValidator()(self.cleaned_data["username"])
        return super().clean_username()


class TooManySignUps(Exception):
    """The limit per address is reached. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after


@method_decorator([sensitive_post_parameters(), never_cache], name="dispatch")
class SignUpView(RedirectURLMixin, FormView):
    template_name = "accounts/sign_up.html"
    form_class = SignUpForm
    next_page = settings.LOGIN_REDIRECT_URL

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not settings.SIGN_UP_OPEN:
            raise Http404("Sign-up is closed. Set SIGN_UP=open to open it.")
        return super().dispatch(request, *args, **kwargs)

    def form_valid(self, form: SignUpForm) -> HttpResponse:
        user = form.save(commit=False)  # hashes the password, which takes long
        address = client_address(self.request)
        _delete_outdated_addresses()
        try:
            user = _save_self_registered(user, address)
        except IntegrityError:
            # Someone else took the name after the form was validated.
            form.add_error("username", ValidationError("A user with that username already exists."))
            return self.form_invalid(form)
        except TooManySignUps as error:
            logger.warning("Sign-up rejected: SIGN_UPS_PER_HOUR is reached for %s.", address)
            context = {"minutes": ceil(error.retry_after / 60)}
            response = render(self.request, "accounts/too_many_sign_ups.html", context, status=429)
            response["Retry-After"] = str(error.retry_after)
            return response
        login(self.request, user, backend=settings.AUTHENTICATION_BACKENDS[-1])
        return super().form_valid(form)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(next=self.get_redirect_url(), **kwargs)


@retry_transaction()
def _delete_outdated_addresses() -> None:
    begin = timezone.now() - SIGN_UP_PERIOD
    outdated = SelfRegistration.objects.filter(address__isnull=False, created_at__lte=begin)
    outdated.update(address=None)


@retry_transaction(idempotent=False)
def _save_self_registered(unsaved: Any, address: str | None) -> Any:
    """Insert a user who signed up. Raises TooManySignUps and IntegrityError."""
    now = timezone.now()
    begin = now - SIGN_UP_PERIOD
    same_address = SelfRegistration.objects.filter(address=address, created_at__gt=begin)
    # The locks make sign-ups from an address wait for each other. Before its first sign-up there
    # is nothing to lock: the limit can be exceeded by the number of threads of the site.
    recent = same_address.select_for_update().order_by("created_at")
    times = list(recent.values_list("created_at", flat=True))
    if len(times) >= settings.SIGN_UPS_PER_HOUR:
        wait = times[-settings.SIGN_UPS_PER_HOUR] - begin
        raise TooManySignUps(ceil(wait.total_seconds()))
    user = copy(unsaved)  # a failed attempt leaves a key that another user may have now
    user.save(force_insert=True)
    SelfRegistration.objects.create(user=user, address=address, created_at=now)
    return user


urlpatterns = [
    path(
        "sign-in/",
        LoginView.as_view(template_name="accounts/sign_in.html", authentication_form=SignInForm),
        name="sign-in",
    ),
    path("sign-out/", LogoutView.as_view(), name="sign-out"),
    path("sign-up/", SignUpView.as_view(), name="sign-up"),
]
