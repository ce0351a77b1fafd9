package store

import "strings"

// The queries, in the subset that SQLite and PostgreSQL share: $1 placeholders, ON CONFLICT, no casts. Columns stand in
// the order of the fields they fill (rows.go).
const (
	releaseColumns  = `sha256, project, chip, version, min_version, description, force_update, size, secure_version, build_date, manifest, cosignatures, published_at, published_by, withdrawn`
	channelColumns  = `project, chip, name, sha256, set_at, set_by`
	deviceColumns   = `id, token_sha256, enrolled_at, revoked, channel, online, first_seen, last_seen, phase_since, phase, version, sha256, previous_version, boot, seq, old_boots, status, labels, doubts, certificate_sha256, certificate_ends`
	attemptColumns  = `id, command_id, device_id, action, force, version, sha256, created_at, created_by, expires_at, state, phase, reason, message, updated_at, ended_at, rollout_id`
	factColumns     = `project, chip, reason, protected, suspect` // copies of what stands in status and doubts
	keyColumns      = `project, kind, sequence, key, from_version, threshold, retired, added_at, added_by`
	operatorColumns = `name, token_sha256, created_at, revoked, role, expires_at`

	rolloutColumns    = `id, revision, state, priority, created_at, request_key, body`
	memberColumns     = `rollout_id, device_id, rank, state, attempts, tries, attempt_id, not_before, reason, message, updated_at`
	quarantineColumns = `sha256, rollout_id, why, since, lifted_at, lifted_by`
)

// of names the columns of one of several tables.
func of(table, columns string) string {
	return table + "." + strings.ReplaceAll(columns, ", ", ", "+table+".")
}

// query is an index into queries and into the statements prepared from them.
type query int

const (
	qRelease query = iota
	qReleaseByVersion
	qReleases
	qPutRelease
	qChannel
	qChannels
	qPutChannel
	qDevice
	qDevices
	qPutDevice
	qPutReport
	qAttempt
	qAttemptsOf
	qOpenAttempts
	qOpenAttemptsOf
	qPutAttempt
	qKeys
	qPutKey
	qOperator
	qOperatorByToken
	qPutOperator
	qRollout
	qRolloutByKey
	qRollouts
	qRolloutsToTend
	qPutRollout
	qMember
	qMemberCounts
	qMemberCountIn
	qMembers
	qMembersIn
	qCandidates
	qAway
	qTried
	qDoubted
	qCountDark
	qPutMember
	qCountAttempts
	qRolledBack
	qQuarantine
	qQuarantines
	qPutQuarantine
	qAuditHead
	qAppendAudit
	queryCount
)

var queries = [queryCount]string{
	qRelease:          `SELECT ` + releaseColumns + ` FROM releases WHERE sha256 = $1`,
	qReleaseByVersion: `SELECT ` + releaseColumns + ` FROM releases WHERE project = $1 AND chip = $2 AND version = $3`,
	qReleases:         `SELECT ` + releaseColumns + ` FROM releases ORDER BY published_at DESC, sha256`,
	qPutRelease: `INSERT INTO releases (` + releaseColumns + `)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
ON CONFLICT (sha256) DO UPDATE SET project = excluded.project, chip = excluded.chip, version = excluded.version,
 min_version = excluded.min_version, description = excluded.description, force_update = excluded.force_update,
 size = excluded.size, secure_version = excluded.secure_version, build_date = excluded.build_date,
 manifest = excluded.manifest, cosignatures = excluded.cosignatures, published_at = excluded.published_at, published_by = excluded.published_by,
 withdrawn = excluded.withdrawn`,

	qChannel:  `SELECT ` + channelColumns + ` FROM channels WHERE project = $1 AND chip = $2 AND name = $3`,
	qChannels: `SELECT ` + channelColumns + ` FROM channels ORDER BY project, chip, name`,
	qPutChannel: `INSERT INTO channels (` + channelColumns + `) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (project, chip, name) DO UPDATE SET sha256 = excluded.sha256, set_at = excluded.set_at, set_by = excluded.set_by`,

	qDevice:  `SELECT ` + deviceColumns + ` FROM devices WHERE id = $1`,
	qDevices: `SELECT ` + deviceColumns + ` FROM devices ORDER BY id`,
	qPutDevice: `INSERT INTO devices (` + deviceColumns + `, ` + factColumns + `)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26)
ON CONFLICT (id) DO UPDATE SET token_sha256 = excluded.token_sha256, enrolled_at = excluded.enrolled_at,
 revoked = excluded.revoked, channel = excluded.channel, online = excluded.online, first_seen = excluded.first_seen,
 last_seen = excluded.last_seen, phase_since = excluded.phase_since, phase = excluded.phase, version = excluded.version,
 sha256 = excluded.sha256, previous_version = excluded.previous_version, boot = excluded.boot, seq = excluded.seq,
 old_boots = excluded.old_boots, status = excluded.status, labels = excluded.labels,
 certificate_sha256 = excluded.certificate_sha256, certificate_ends = excluded.certificate_ends, project = excluded.project, chip = excluded.chip,
 reason = excluded.reason, protected = excluded.protected, doubts = excluded.doubts, suspect = excluded.suspect`,
	qPutReport: `UPDATE devices SET online = $1, last_seen = $2, seq = $3, status = $4 WHERE id = $5`,

	qAttempt:        `SELECT ` + attemptColumns + ` FROM attempts WHERE id = $1`,
	qAttemptsOf:     `SELECT ` + attemptColumns + ` FROM attempts WHERE device_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2`,
	qOpenAttempts:   `SELECT ` + attemptColumns + ` FROM attempts WHERE state = 'open' ORDER BY created_at, id`,
	qOpenAttemptsOf: `SELECT ` + attemptColumns + ` FROM attempts WHERE device_id = $1 AND state = 'open' ORDER BY created_at, id`,
	qPutAttempt: `INSERT INTO attempts (` + attemptColumns + `)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
ON CONFLICT (id) DO UPDATE SET command_id = excluded.command_id, device_id = excluded.device_id, action = excluded.action,
 force = excluded.force, version = excluded.version, sha256 = excluded.sha256, created_at = excluded.created_at,
 created_by = excluded.created_by, expires_at = excluded.expires_at, state = excluded.state, phase = excluded.phase,
 reason = excluded.reason, message = excluded.message, updated_at = excluded.updated_at, ended_at = excluded.ended_at,
 rollout_id = excluded.rollout_id`,

	qKeys: `SELECT ` + keyColumns + ` FROM keys WHERE project = $1 OR $1 = '' ORDER BY added_at, kind, sequence, key`,
	qPutKey: `INSERT INTO keys (` + keyColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (project, kind, sequence, key) DO UPDATE SET from_version = excluded.from_version, threshold = excluded.threshold,
 retired = excluded.retired, added_at = excluded.added_at, added_by = excluded.added_by`,

	qOperator:        `SELECT ` + operatorColumns + ` FROM operators WHERE name = $1`,
	qOperatorByToken: `SELECT ` + operatorColumns + ` FROM operators WHERE token_sha256 = $1`,
	qPutOperator: `INSERT INTO operators (` + operatorColumns + `) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256, created_at = excluded.created_at, revoked = excluded.revoked,
 role = excluded.role, expires_at = excluded.expires_at`,

	qRollout:      `SELECT ` + rolloutColumns + ` FROM rollouts WHERE id = $1`,
	qRolloutByKey: `SELECT ` + rolloutColumns + ` FROM rollouts WHERE request_key = $1 AND request_key <> ''`,
	qRollouts:     `SELECT ` + rolloutColumns + ` FROM rollouts ORDER BY created_at DESC, id`,
	qRolloutsToTend: `SELECT ` + rolloutColumns + ` FROM rollouts WHERE state = 'running'
 OR id IN (SELECT rollout_id FROM rollout_members WHERE state = 'open') ORDER BY priority DESC, created_at, id`,
	// The row is written when it is new and the writer knows of none ($8 is 1: $2 as a number, for PostgreSQL gives a value one
	// type), or when it is the one that the writer read.
	qPutRollout: `INSERT INTO rollouts (` + rolloutColumns + `) SELECT $1, $2, $3, $4, $5, $6, $7
WHERE $8 = 1 OR EXISTS (SELECT 1 FROM rollouts WHERE id = $1)
ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, state = excluded.state, priority = excluded.priority,
 created_at = excluded.created_at, request_key = excluded.request_key, body = excluded.body
WHERE rollouts.revision = excluded.revision - 1`,

	qMember: `SELECT ` + memberColumns + ` FROM rollout_members WHERE rollout_id = $1 AND device_id = $2`,
	// The counts are kept by triggers of the table of members.
	qMemberCounts:  `SELECT state, members FROM rollout_counts WHERE rollout_id = $1 AND members > 0`,
	qMemberCountIn: `SELECT COUNT(*) FROM rollout_members WHERE rollout_id = $1 AND state = $2 AND rank >= $3 AND rank < $4`,
	qMembers:       `SELECT ` + memberColumns + ` FROM rollout_members WHERE rollout_id = $1 AND rank > $2 ORDER BY rank LIMIT $3`,
	qMembersIn:     `SELECT ` + memberColumns + ` FROM rollout_members WHERE rollout_id = $1 AND state = $2 AND rank > $3 ORDER BY rank LIMIT $4`,
	qCandidates: `SELECT ` + of("m", memberColumns) + `, ` + of("d", deviceColumns) + `,
 EXISTS (SELECT 1 FROM attempts a WHERE a.device_id = m.device_id AND a.state = 'open'),
 EXISTS (SELECT 1 FROM rollout_members o JOIN rollouts r ON r.id = o.rollout_id WHERE o.device_id = m.device_id
  AND o.state IN ('pending', 'open') AND r.state = 'running' AND r.priority > $2)
FROM rollout_members m JOIN devices d ON d.id = m.device_id
WHERE m.rollout_id = $1 AND m.state = 'pending' AND m.rank > $3 AND m.rank < $4 AND (d.online <> 0 OR d.revoked <> 0 OR $6 <> 0)
ORDER BY m.rank LIMIT $5`,
	// CROSS JOIN keeps SQLite from beginning with the devices: the members of a wave are fewer.
	qAway: `SELECT ` + of("m", memberColumns) + ` FROM rollout_members m CROSS JOIN devices d
WHERE m.rollout_id = $1 AND m.state = 'pending' AND m.rank < $2 AND m.attempts = 0 AND d.id = m.device_id
 AND d.online = 0 AND d.revoked = 0 AND d.last_seen < $3 AND d.phase NOT IN ` + updating + `
ORDER BY m.rank LIMIT $4`,
	qTried: `SELECT ` + of("m", memberColumns) + `, ` + of("d", deviceColumns) + `, 0, 0 FROM rollout_members m CROSS JOIN devices d
WHERE m.rollout_id = $1 AND m.state = 'pending' AND m.tries > 0 AND d.id = m.device_id AND d.online = 0 ORDER BY m.rank`,
	// Each half begins with what there is less of: the devices that are suspect, the members that are.
	qDoubted: `SELECT ` + of("m", memberColumns) + `, ` + of("d", deviceColumns) + `, 0, 0 FROM devices d CROSS JOIN rollout_members m
WHERE d.suspect = 1 AND m.rollout_id = $1 AND m.device_id = d.id AND m.state NOT IN ('open', 'skipped', 'suspect')
UNION ALL SELECT ` + of("m", memberColumns) + `, ` + of("d", deviceColumns) + `, 0, 0 FROM rollout_members m CROSS JOIN devices d
WHERE m.rollout_id = $1 AND m.state = 'suspect' AND d.id = m.device_id AND d.suspect = 0 ORDER BY 3`,
	// CROSS JOIN has SQLite begin with the devices that are away, of which there are few.
	qCountDark: `SELECT COUNT(*) FROM devices d CROSS JOIN rollout_members m
WHERE d.online = 0 AND d.last_seen < $2 AND m.rollout_id = $1 AND m.device_id = d.id
 AND (m.state = 'succeeded' OR m.state = 'pending' AND m.tries > 0)`,
	qPutMember: `INSERT INTO rollout_members (` + memberColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (rollout_id, device_id) DO UPDATE SET rank = excluded.rank, state = excluded.state, attempts = excluded.attempts,
 tries = excluded.tries, attempt_id = excluded.attempt_id, not_before = excluded.not_before, reason = excluded.reason,
 message = excluded.message, updated_at = excluded.updated_at`,
	qCountAttempts: `SELECT COUNT(*) FROM attempts WHERE rollout_id = $1 AND rollout_id <> '' AND created_at > $2`,
	qRolledBack:    `SELECT DISTINCT device_id FROM attempts WHERE sha256 = $1 AND state = 'rolled_back' ORDER BY device_id`,

	qQuarantine:  `SELECT ` + quarantineColumns + ` FROM quarantine WHERE sha256 = $1`,
	qQuarantines: `SELECT ` + quarantineColumns + ` FROM quarantine ORDER BY since DESC, sha256`,
	qPutQuarantine: `INSERT INTO quarantine (` + quarantineColumns + `) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (sha256) DO UPDATE SET rollout_id = excluded.rollout_id, why = excluded.why, since = excluded.since,
 lifted_at = excluded.lifted_at, lifted_by = excluded.lifted_by`,

	qAuditHead:   `SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1`,
	qAppendAudit: `INSERT INTO audit (` + auditColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
}
