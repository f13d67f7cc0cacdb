"""The consortium's witness: it cosigns boxes' audit logs, and no box can show it two histories."""
