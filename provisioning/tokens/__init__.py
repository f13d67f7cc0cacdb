"""Enrolment tokens: made, registered, and put on sticks, into codes and onto paper."""
