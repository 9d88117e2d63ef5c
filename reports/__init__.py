"""From a record to a Report: account, findings, rendering. Never touches a live process or torch."""
