"""The site accepts no files."""

from typing import Any, NoReturn

from django.core.files.uploadhandler import FileUploadHandler
from django.http.multipartparser import MultiPartParserError


class RejectFiles(FileUploadHandler):
    """Reject a form with a file at once. Django would store the file in a temporary folder."""

    def new_file(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise MultiPartParserError("The site accepts no files.")
