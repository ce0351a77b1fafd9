#!/bin/bash
# check-ota-health.sh: is the server there, the broker, the certificate still good, is there room, do the monitors answer?
# Ends with 0 when all is well and with 5 when something is not, so cron or a monitoring system can call it.
set -e

# Check server availability, MQTT connectivity, certificate and storage
bmsota health

# Ask the monitors; the broker remembers those that are away
bmsota status
