"""The date format of the admin."""

DATETIME_FORMAT = "M j, Y, H:i"
