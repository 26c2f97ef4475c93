"""The date format of the admin."""

DATETIME_FORMAT = "j M Y, H:i"
