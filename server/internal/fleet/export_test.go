package fleet

import "context"

// InTurn runs work as a login's password is worked on.
func InTurn(ctx context.Context, f *Fleet, work func()) error { return f.guard.inTurn(ctx, work) }
