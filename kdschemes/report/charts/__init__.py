"""The charts of a report, one kind per file. Each kind is a function of groups that returns sections or charts."""
