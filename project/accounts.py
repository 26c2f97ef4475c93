"""Signing in, out and up. Django's own views; django-axes counts what fails."""

from ipaddress import ip_address
from typing import Any

from axes.backends import AxesStandaloneBackend
from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.views import LoginView, LogoutView, RedirectURLMixin
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.generic import FormView


class SignInLimit(AxesStandaloneBackend):
    """Refuses whoever failed too often. Where there is no request, nobody is guessing."""

    def authenticate(self, request: HttpRequest | None, *args: Any, **kwargs: Any) -> None:
        if request is not None:
            super().authenticate(request, *args, **kwargs)


def client_address(request: HttpRequest) -> str | None:
    """The visitor's address, as the last of our PROXIES saw it."""
    # What is further to the left, visitors can write there themselves.
    forwarded = request.headers.get("X-Forwarded-For", "").split(",")
    seen = [*forwarded, request.META.get("REMOTE_ADDR", "")]
    address = seen[-1 - settings.PROXIES :][0].strip()
    try:
        return str(ip_address(address))
    except ValueError:
        return None


def tried_username(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str:
    """The name for which a failure is counted: as much of it as fits."""
    return str((credentials or request.POST).get("username") or "")[:255]


class SignInView(LoginView):
    template_name = "accounts/sign_in.html"
    redirect_authenticated_user = True

    def get_redirect_url(self) -> str:
        there = super().get_redirect_url()
        # To itself it would lead round and round.
        return "" if there.startswith(self.request.path) else there


@method_decorator([sensitive_post_parameters(), never_cache], name="dispatch")
class SignUpView(RedirectURLMixin, FormView):
    template_name = "accounts/sign_up.html"
    form_class = UserCreationForm
    next_page = settings.LOGIN_REDIRECT_URL

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.user.is_authenticated:
            return HttpResponseRedirect(self.get_success_url())
        return super().dispatch(request, *args, **kwargs)

    def form_valid(self, form: UserCreationForm) -> HttpResponse:
        try:
            with transaction.atomic():
                user = form.save()
                login(self.request, user, backend=settings.AUTHENTICATION_BACKENDS[-1])
        except IntegrityError:
            # Somebody took the name since the form looked.
            form.add_error("username", ValidationError("A user with that username exists already."))
            return self.form_invalid(form)
        return super().form_valid(form)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        there = self.get_redirect_url()
        return super().get_context_data(next=there, **kwargs)


urlpatterns = [
    path("sign-in/", SignInView.as_view(), name="sign-in"),
    path("sign-out/", LogoutView.as_view(), name="sign-out"),
    path("sign-up/", SignUpView.as_view(), name="sign-up"),
]
