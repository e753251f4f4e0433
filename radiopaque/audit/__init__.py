"""The audit log: who asked for what, when, of which model, in which session, with which outcome.

Append-only lines of JSON, one an event, never an event's content. Each line holds the SHA-256 of
the line before it, so that nothing can be changed, inserted or removed in the middle without every
later hash showing it; a head file holds the number and hash of the last line, so that a shortened
end shows, too. A line is on the disk when :meth:`AuditLog.write` returns.

What a chain of hashes cannot show is the work of somebody who rewrites all of it and the head with
it. Whoever must be able to rule that out writes the hash that ``radiopaque audit verify`` prints
down somewhere else, and gives it to a later check (``--contains``).

Segments are named after the number of their first line and begin where the last one ended; old
ones may be moved away, from the front.
"""

from radiopaque.audit.chain import Report, verify
from radiopaque.audit.log import AuditLog

__all__ = ["AuditLog", "Report", "verify"]
