package fleet

import (
	"fmt"
	"slices"

	"bmsota/audit"
)

// Role is what an identity may do.
type Role string

// The roles. A device speaks for itself only and has no right of the table below.
const (
	RoleDevice   Role = "device"
	RoleViewer   Role = "viewer"   // sees everything, changes nothing
	RoleOperator Role = "operator" // publishes, commands, enrols
	RoleAdmin    Role = "admin"    // and decides who else may
)

// Right is a kind of thing that an identity may be allowed to do.
type Right string

// The rights.
const (
	RightView       Right = "view"       // devices, releases, figures
	RightPassword   Right = "password"   // change one's own
	RightOperate    Right = "operate"    // publish, point channels and put devices into them, withdraw, command, enrol, revoke, roll out, label, lift quarantines
	RightAudit      Right = "audit"      // read who did what, signed in, or was turned away
	RightAdminister Right = "administer" // accounts, tokens, webhooks, keys that are pinned or new
)

// rights is the one table. What does not stand in it is refused.
var rights = map[Right][]Role{
	RightView:       {RoleViewer, RoleOperator, RoleAdmin},
	RightPassword:   {RoleViewer, RoleOperator, RoleAdmin},
	RightOperate:    {RoleOperator, RoleAdmin},
	RightAudit:      {RoleOperator, RoleAdmin},
	RightAdminister: {RoleAdmin},
}

// Roles are those that an account or a token can have, the weakest first.
func Roles() []Role { return []Role{RoleViewer, RoleOperator, RoleAdmin} }

// Rights lists the rights of the table.
func Rights() []Right {
	return []Right{RightView, RightPassword, RightOperate, RightAudit, RightAdminister}
}

// Has says whether the identity has a right. Nobody, which is the zero Identity, has none.
func (id Identity) Has(r Right) bool { return id.Name != "" && slices.Contains(rights[r], id.Role) }

// may refuses whoever lacks a right, which the audit log learns.
func (f *Fleet) may(by Identity, r Right) error {
	if !by.Has(r) {
		f.TurnedAway(Knock{What: audit.AccessDenied, Name: by.Name, About: string(r)})
		return fmt.Errorf("%w: the role %q of %q has no right to %s", ErrDenied, by.Role, by.Name, r)
	}
	return nil
}

// operator refuses who may not change the fleet.
func (f *Fleet) operator(by Identity) error { return f.may(by, RightOperate) }

// checkRole refuses what is no role of an account.
func checkRole(r Role) error {
	if !slices.Contains(Roles(), r) {
		return fmt.Errorf("%w: role %.32q is none of viewer, operator, admin", ErrInvalid, r)
	}
	return nil
}
